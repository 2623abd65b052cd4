"""A session turned into what is shown: no Textual."""
