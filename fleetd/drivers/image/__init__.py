"""Images as files: taken in, hashed, converted and kept, under the digest that is their name."""
