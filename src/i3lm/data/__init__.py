"""Training text: documents, their sources, token files, and the order they are trained on."""

from i3lm.data.documents import Document
from i3lm.data.loader import Loader
from i3lm.data.packing import Corpus, prepare
from i3lm.data.sources import Source, open_source

__all__ = ["Corpus", "Document", "Loader", "Source", "open_source", "prepare"]
