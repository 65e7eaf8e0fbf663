"""gaudicc compiles PyTorch models for inference on Intel Gaudi."""
