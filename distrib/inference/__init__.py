"""After training: a trained model is loaded, asked, measured and handed on."""
