"""The paper's figures: linear probe top-1 in %, ImageNet-1k, DiT-L, 400 epochs (2401.14404)."""

# fmt: off
PATH = {
    # row       recipe      step, each on top of the one above        top-1
    "0":      ("row0",     "DiT, VQGAN tokenizer, class-conditional",  57.5),
    "1":      ("row1",     "no class-conditioning",                    62.5),
    "2":      ("row2",     "no perceptual loss in the tokenizer",      58.4),
    "3":      ("row3",     "no adversarial loss in the tokenizer",     59.0),
    "4":      ("row4",     "noise schedule: γ² falls linearly",        63.4),
    "5":      ("row5",     "patch-wise VAE",                           64.9),
    "6":      ("row6",     "patch-wise AE",                            64.7),
    "7":      ("row7",     "patch-wise PCA",                           65.1),
    "8":      ("row8",     "predict clean data, not noise",            62.4),
    "9":      ("row9",     "no input scaling: γ = 1",                  63.6),
    "10":     ("row10",    "input: an image, by inverse PCA",          63.6),
    "11":     ("row11",    "output: an image, by inverse PCA",         63.9),
    "12":     ("row12",    "predict the original image: l-DAE",        64.5),
    "13":     ("row13",    "l-DAE with one noise level",               61.5),
    "12+":    ("ldae-aug", "l-DAE with random resized crops",          65.0),
    "even":   ("row12",    "l-DAE, every component weighed alike",     None),
    "pixel":  ("row12",    "l-DAE with the noise on pixels",           None),
    "mae":    ("mae",      "masked autoencoder (MAE), same budget",    None),
}

# Table 2: by values per token, with the tokenizer and the objective of the row that is named.
TABLE2 = {
    #                      recipe      8     16    32    64    128
    ("conv-vae",  "conv VAE",       "row4"): {8: 54.5, 16: 63.4, 32: 62.8, 64: 57.0, 128: 48.1},
    ("patch-vae", "patch-wise VAE", "row5"): {8: 58.3, 16: 64.9, 32: 64.8, 64: 56.8, 128: None},
    ("patch-ae",  "patch-wise AE",  "row6"): {8: 59.9, 16: 64.7, 32: 64.6, 64: 59.9, 128: None},
    ("pca",       "patch-wise PCA", "row7"): {8: 56.0, 16: 63.4, 32: 65.1, 64: 60.0, 128: 53.9},
}
# Fig. 5: no tokenizer, 256 tokens, by image and patch side; 32 and 128 may be swapped there.
FIG5 = {(32, 2): 43.7, (64, 4): 58.5, (128, 8): 53.0, (256, 16): 23.6}

# What is changed when the final l-DAE is probed.
PROBE_T = {
    # t        0     10    20    40    80
    "raw":   {0: 64.1, 10: 64.5, 20: 64.1, 40: 63.3, 80: 62.2},
    "noisy": {0: 64.2, 10: 65.0, 20: 65.0, 40: 65.0, 80: 64.5},
}
CUT_OF_24 = {9: 58.5, 10: 62.0, 11: 64.1, 12: 64.5, 13: 63.6, 14: 61.9, 15: 59.7}

# With random resized crops: by how much longer than 400 epochs, and by size.
EPOCHS = {1: 65.0, 2: 67.5, 4: 69.6}
SIZES = {"B": 60.3, "half-L": 65.0, "L": 70.9}
# fmt: on
