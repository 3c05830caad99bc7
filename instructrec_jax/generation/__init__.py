"""Item generation (T2): titles of a catalogue that a model finds likeliest, by beam search."""
