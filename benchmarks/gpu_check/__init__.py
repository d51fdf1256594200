"""`make gpu-check`: whether the GPU side of mmga is right, and how fast it is."""
