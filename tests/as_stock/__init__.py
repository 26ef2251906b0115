"""What stock Keras does and what happens with a `MaskedOptimizer` of all rows, side by side."""
