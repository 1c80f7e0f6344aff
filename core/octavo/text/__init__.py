"""Token ids to text, one token at a time: incremental detokenization and stop strings."""

from octavo.text.detokenizer import Detokenizer
from octavo.text.stop import StopChecker
from octavo.text.token_texts import TokenTexts

__all__ = ["Detokenizer", "StopChecker", "TokenTexts"]
