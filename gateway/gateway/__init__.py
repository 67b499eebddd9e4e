"""The public REST API of Pixelgate, and the pipeline that analyses every stored picture."""
