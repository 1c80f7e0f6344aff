"""The OpenAI API: what is asked, and what is answered."""
