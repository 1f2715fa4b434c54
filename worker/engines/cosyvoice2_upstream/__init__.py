"""The official CosyVoice 2 package behind our protocol: what our own engine is measured against."""
