"""A patch goes to a hub and comes back, and what comes back is trusted as little as any file."""

import sys

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("huggingface_hub")
import huggingface_hub

from maskedgrad.patches import RowPatch, TablePatch, load_from_hub, push_to_hub
from maskedgrad.rows.rows import Rows
from tests.hub import running_hub

REPO = "user/city-names"


def patch_of(number):
    values = np.full((2, 3), number, "float32")
    return RowPatch(TablePatch("words", Rows([3, 5], 9), values, None, "0" * 64))


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def where(hub, tmp_path):
    """How these functions find the server, and keep what they download."""
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token=False)
    return {"api": api}, {"api": api, "cache_dir": str(tmp_path / "cache")}


def test_what_is_loaded_is_what_was_pushed_and_a_commit_stays_what_it_is(where):
    push, load = where
    first = push_to_hub(patch_of(1), REPO, **push)
    assert load_from_hub(REPO, **load) == patch_of(1)
    second = push_to_hub(patch_of(2), REPO, **push)
    assert load_from_hub(REPO, **load) == patch_of(2)
    assert load_from_hub(REPO, revision=first, **load) == patch_of(1)
    assert load_from_hub(REPO, revision=second, **load) == patch_of(2)


def test_a_branch_and_a_file_of_a_name_are_found(where, hub):
    push, load = where
    push_to_hub(patch_of(1), REPO, **push)
    name = "patches/city.safetensors"
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        push_to_hub(patch_of(2), REPO, name, revision="next", **push)
    hub.branches[REPO]["next"] = hub.branches[REPO]["main"]
    push_to_hub(patch_of(2), REPO, name, revision="next", commit_message="A city", **push)
    assert load_from_hub(REPO, name, revision="next", **load) == patch_of(2)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        load_from_hub(REPO, name, **load)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"no patch"])
def test_what_was_damaged_or_is_something_else_is_refused(where, hub, damage):
    push, load = where
    push_to_hub(patch_of(1), REPO, **push)
    _, content = hub.file(REPO, "main", "row_patch.safetensors")
    hub.push(REPO, "main", {"row_patch.safetensors": damage(content)})
    with pytest.raises(ValueError, match="Expected a whole safetensors file"):
        load_from_hub(REPO, **load)


def test_only_safetensors_come_and_go(where, hub):
    push, load = where
    with pytest.raises(ValueError, match="which holds no code"):
        push_to_hub(patch_of(1), REPO, "patch.bin", **push)
    with pytest.raises(ValueError, match="which holds no code"):
        load_from_hub(REPO, "patch.bin", **load)
    assert not hub.branches


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # Python's way to say there is none
    for call in (lambda: push_to_hub(patch_of(1), REPO), lambda: load_from_hub(REPO)):
        with pytest.raises(ImportError, match=r'pip install "maskedgrad\[hub\]"'):
            call()


def test_the_server_is_that_of_the_library_if_none_is_given():
    """Nothing is sent: `HfApi` refuses the name of the repository before."""
    with pytest.raises(huggingface_hub.errors.HFValidationError):
        load_from_hub("no/such/name")
