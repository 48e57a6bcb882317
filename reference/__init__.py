"""How the reference pair was made: data generator, tokenizer, trainer. Not part of the installed package."""
