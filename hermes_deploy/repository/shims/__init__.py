"""model.py of each Triton model, by model name. `assemble` copies them; only Triton imports them."""
