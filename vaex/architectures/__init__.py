"""Encoders and decoders.

An architecture is a module with two classes:

    Encoder(image_shape, out_features, condition_features, ...)(x, condition) -> [B, out_features]
    Decoder(in_features, image_shape, out_channels, ...)(z) -> [B, out_channels, H, W]

`image_shape` is (channels, height, width). `condition` is [B, condition_features], one-hot labels, or None when
`condition_features` is 0; the decoder gets it as a part of `z`. The last layer of both is linear: what the numbers mean
is up to the posterior and the likelihood.
"""
