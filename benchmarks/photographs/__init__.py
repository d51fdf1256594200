"""The evidence on photographs: rows and controls of the ablation on real persons."""
