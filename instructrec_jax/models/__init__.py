"""T5 1.1 in Flax NNX and its losses: pure functions of arrays, no mesh, no paths."""
