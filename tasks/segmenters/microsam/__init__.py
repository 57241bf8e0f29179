"""micro-sam as a segmenter: models, weights, inputs, tile sizes."""
