"""Names as a person would write them."""

TERMS = {
    "sams vae": "SAMS-VAE",
    "cpa vae": "CPA-VAE",
    "svae plus": "SVAE+",
    "beta bernoulli": "beta-Bernoulli",
    "vae": "VAE",
    "rna": "RNA",
}


def readable(name: str) -> str:
    """Turn a configured name into words, with the field's terms spelt as they are.

    What a candidate of a grid differs in is put in brackets.
    """
    model, *differences = name.split("--")
    if differences and all("-" in difference for difference in differences):
        chosen = (difference.replace("_", " ").replace("-", " ", 1) for difference in differences)
        return f"{readable(model)} ({', '.join(chosen)})"
    words = name.replace("_", " ")
    for term, spelt in TERMS.items():
        if f" {term} " in f" {words} ":
            words = f" {words} ".replace(f" {term} ", f" {spelt} ").strip()
    return words


def readable_set(name: str) -> str:
    """Write a gene set's name as words; capitals alone, as MSigDB has them, become small."""
    words = readable(name.removeprefix("HALLMARK_"))
    return words.lower() if words.isupper() else words
