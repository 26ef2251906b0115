"""Tokenizers of keras_hub and of Hugging Face: copies of them that know more words.

None of the two libraries is imported: what a tokenizer has says of which kind it is.
"""

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from maskedgrad.vectors.layers import layers_in


class CannotLearnError(ValueError):
    """A tokenizer takes no more words; the message says why."""


def is_tokenizer(value: Any) -> bool:
    """Whether a value turns texts into ids as tokenizers of keras_hub do."""
    names = "token_to_id", "id_to_token", "get_vocabulary", "vocabulary_size"
    return all(hasattr(value, name) for name in names)


def is_of_hugging_face(value: Any) -> bool:
    """Whether a value is a tokenizer as those of `tokenizers` and `transformers` are."""
    return hasattr(value, "get_vocab") and hasattr(value, "add_tokens")


def tokenizers_in(model: Any) -> list[Any]:
    """The tokenizers of keras_hub in a model, such as that of a task's preprocessor."""
    return [layer for layer in layers_in(model) if is_tokenizer(layer)]


def taught(tokenizer: Any, words: Sequence[str]) -> Any:
    """A tokenizer of the same kind that has each new word as a token of its own.

    Raises:
        CannotLearnError: its class takes no more words.
    """
    if is_of_hugging_face(tokenizer):
        new = copy.deepcopy(tokenizer)
        new.add_tokens(list(words))
        return new
    config = tokenizer.get_config()
    try:
        if hasattr(tokenizer, "merges"):
            new = _byte_pair(tokenizer, config, words)
        elif hasattr(tokenizer, "suffix_indicator"):
            new = _word_piece(tokenizer, config, words)
        elif hasattr(tokenizer, "proto"):
            new = _sentence_piece(tokenizer, config, words)
        else:
            raise CannotLearnError(f"{type(tokenizer).__name__} is of a kind that is not known")
        saved = _saved_and_loaded(new)
    except CannotLearnError:
        raise
    except Exception as error:  # whatever the class does not take
        raise CannotLearnError(
            f"{type(tokenizer).__name__} takes no more words: {error}"
        ) from error
    _check_tokens(saved, words)
    _check_new_ids(tokenizer, saved, words)
    return new


def ids_of(tokenizer: Any, words: Sequence[str]) -> np.ndarray:
    """The id of each word in a tokenizer of keras_hub that has them as tokens."""
    return np.array([tokenizer.token_to_id(word) for word in words], dtype=np.int64)


def used_ids(tokenizer: Any) -> np.ndarray:
    """The ids that a tokenizer of keras_hub gives, those of its special tokens included."""
    special = {value for name, value in vars(tokenizer).items() if name.endswith("token_id")}
    special |= set(range(int(tokenizer.vocabulary_size())))
    return np.array(sorted(id_ for id_ in special if isinstance(id_, (int, np.integer))))


def _byte_pair(tokenizer: Any, config: dict[str, Any], words: Sequence[str]) -> Any:
    if "unsplittable_tokens" not in config:
        raise CannotLearnError(
            f"{type(tokenizer).__name__} fixes which tokens it leaves whole, and would split "
            "a new word into bytes"
        )
    vocabulary = dict(tokenizer.vocabulary)
    first = max(*used_ids(tokenizer).tolist(), *vocabulary.values()) + 1
    vocabulary.update({word: first + place for place, word in enumerate(words)})
    config["unsplittable_tokens"] = [*(config["unsplittable_tokens"] or []), *words]
    return _made(tokenizer, {**config, "vocabulary": vocabulary, "merges": list(tokenizer.merges)})


def _word_piece(tokenizer: Any, config: dict[str, Any], words: Sequence[str]) -> Any:
    vocabulary = [*tokenizer.get_vocabulary(), *words]
    plain = _made(tokenizer, {**config, "vocabulary": vocabulary})
    split = [word for word in words if not _is_token(plain, word)]
    if not split:
        return plain
    # Words that are lowercased or split at punctuation are special tokens, which are left whole.
    config["special_tokens"] = [*(config.get("special_tokens") or []), *split]
    config["special_tokens_in_strings"] = True
    return _made(tokenizer, {**config, "vocabulary": vocabulary})


def _sentence_piece(tokenizer: Any, config: dict[str, Any], words: Sequence[str]) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2 as messages
    except ImportError as error:
        raise CannotLearnError("sentencepiece is not installed") from error
    # Made by protobuf when it is imported, so that type checkers do not see it.
    proto_class: Any = messages.ModelProto  # type: ignore[attr-defined]
    model = proto_class()
    model.ParseFromString(tokenizer.proto)
    for word in words:
        piece = model.pieces.add()
        piece.piece, piece.score = word, 0.0
        piece.type = proto_class.SentencePiece.USER_DEFINED
    return _made(tokenizer, {**config, "proto": model.SerializeToString()})


def _made(tokenizer: Any, config: dict[str, Any]) -> Any:
    return type(tokenizer).from_config(config)


def _saved_and_loaded(tokenizer: Any) -> Any:
    loaded = type(tokenizer).from_config(tokenizer.get_config())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_assets(folder)
        loaded.load_assets(folder)
    return loaded


def _check_tokens(tokenizer: Any, words: Sequence[str]) -> None:
    split = [word for word in words if not _is_token(tokenizer, word)]
    if split:
        raise CannotLearnError(f"{type(tokenizer).__name__} still splits {split[0]!r}")


def _check_new_ids(old: Any, new: Any, words: Sequence[str]) -> None:
    # Those of XLM-RoBERTa and DeBERTaV3 put their mask behind their last word, so it would move.
    taken = set(ids_of(new, words).tolist()) & set(used_ids(old).tolist())
    if taken:
        raise CannotLearnError(
            f"{type(old).__name__} would give a new word the id {min(taken)}, which is that of one "
            "of its own tokens"
        )


def _is_token(tokenizer: Any, word: str) -> bool:
    ids = keras.ops.convert_to_numpy(tokenizer(word)).ravel()
    return int(tokenizer.token_to_id(word)) in ids.tolist()
