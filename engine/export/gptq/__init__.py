"""Checkpoints in the layout of GPTQ, version 1, which every consumer of GPTQ reads.

`expressed` says which formats it holds, in text; `words` packs codes and unpacks them; `form` joins
both for the writer of folders; `writer` writes, and reads back what it wrote.
"""
