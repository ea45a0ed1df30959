"""A self-hosted server for OpenAI's embeddings API."""

__version__ = "0.1.0"
