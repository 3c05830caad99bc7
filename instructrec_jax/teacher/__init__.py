"""Who writes the texts on preferences and intentions (paper section 2.2.2)."""

from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.settings import ClientSettings

__all__ = ["Answer", "ClientSettings", "Ledger", "Question", "ask_all"]
