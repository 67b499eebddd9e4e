"""What a running Pixelgate finds in test scenes, measured against the scenes' truth: `python -m tests.evaluation`."""
