"""The model pass: batches, signals and models, without Ray and without faiss."""
