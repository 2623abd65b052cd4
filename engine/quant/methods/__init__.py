"""Methods that use a layer's inputs, one file each; `engine.quant.data_free` has the others."""
