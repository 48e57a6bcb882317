"""What can be known before anything expensive: from config.json, safetensors headers and the runtime's rules alone."""
