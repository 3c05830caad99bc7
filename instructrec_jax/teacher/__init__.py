"""Who writes the texts on taste and wishes (paper section 2.2.2), and what keeps them honest."""
