"""Photos as arrays: decoding, resizing, letterboxing, boolean planes, colour maps."""
