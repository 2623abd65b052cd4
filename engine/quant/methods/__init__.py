"""Methods that look at a layer's inputs, one file each; `engine.quant.data_free` has the others."""
