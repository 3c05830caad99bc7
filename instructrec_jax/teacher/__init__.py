"""Who writes the texts on preferences and intentions (paper section 2.2.2)."""

from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.questions import Answer, Question

__all__ = ["Answer", "Ledger", "Question"]
