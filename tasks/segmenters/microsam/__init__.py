"""micro-sam as a segmenter: its models, weights, inputs and tile sizes. Only `library` imports micro-sam."""
