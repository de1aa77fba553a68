"""The service: an OpenAI-compatible API, the native API and the page, in one application."""
