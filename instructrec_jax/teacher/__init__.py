"""Who writes the texts on preferences and intentions (paper section 2.2.2)."""
