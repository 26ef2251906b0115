"""Recommenders: rows of users and of items who are new, in two tables."""

import keras
import numpy as np

from maskedgrad import MaskedOptimizer
from tests.compatibility.helpers import assert_only_trained, bits, in_both_models
from tests.compatibility.table import works

NUM_USERS, NUM_ITEMS, WIDTH = 12, 15, 4
NEW_USERS, NEW_ITEMS = [4, 11], [0, 13, 14]
RANDOM = np.random.default_rng(0)
PAIRS = {
    "user": np.repeat(np.arange(NUM_USERS), NUM_ITEMS),
    "item": np.tile(np.arange(NUM_ITEMS), NUM_USERS),
}
RATINGS = RANDOM.normal(size=(NUM_USERS * NUM_ITEMS, 1)).astype("float32")
BOTH_KNOWN = ~np.isin(PAIRS["user"], NEW_USERS) & ~np.isin(PAIRS["item"], NEW_ITEMS)


def dot_product_model(model_class):
    """Predicts a rating by the product of a user's and an item's vector."""
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in PAIRS}
    users = keras.layers.Embedding(NUM_USERS, WIDTH, embeddings_initializer="normal", name="users")
    items = keras.layers.Embedding(NUM_ITEMS, WIDTH, embeddings_initializer="normal", name="items")
    ratings = keras.layers.Dot(1)([users(inputs["user"]), items(inputs["item"])])
    return model_class(inputs, ratings), users, items


@works(
    "Recommenders",
    "Cold start: the rows of new users and new items, in two tables",
    "What is predicted for known users and known items keeps its bits.",
)
@in_both_models
def test_new_users_and_items_learn_and_nothing_else_changes(model_class):
    model, users, items = dot_product_model(model_class)
    before = users.embeddings.numpy(), items.embeddings.numpy()
    predicted = model(PAIRS).numpy()
    optimizer = keras.optimizers.AdamW(0.05)
    model.compile(MaskedOptimizer(optimizer, {users: NEW_USERS, items: NEW_ITEMS}), loss="mse")
    losses = model.fit(PAIRS, RATINGS, batch_size=60, epochs=5, verbose=0).history["loss"]
    assert_only_trained(before[0], users.embeddings.numpy(), NEW_USERS)
    assert_only_trained(before[1], items.embeddings.numpy(), NEW_ITEMS)
    same = bits(model(PAIRS).numpy()) == bits(predicted)
    assert same[BOTH_KNOWN].all()
    assert not same[~BOTH_KNOWN].any()
    assert losses[-1] < losses[0]
