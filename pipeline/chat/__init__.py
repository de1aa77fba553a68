"""The counsellor: backends, quality gate, safety layer, emotion, personas and the inference function."""
