"""Memory of each user and the human-written answers: embedding, lexical search, FAISS behind LangChain.

Import what you need from the modules: `rag.memory`, `rag.knowledge`, `rag.embedders`, `rag.store`, `rag.options`.
"""
