"""Users who write prose: blogs, Shakespeare's characters and reviews, for the prediction of the next word."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from gradleak_lib.data.corpora import Post, read_blogs, read_shakespeare, read_yelp
from gradleak_lib.data.root import data_root
from gradleak_lib.data.users import Population, UserDataset, draw_users, hold_out

# Letters of any alphabet, with apostrophes inside: "don't" is one word, "'tis" is "tis", "2004" is none. And marks,
# since a keyboard predicts them too; repeated ones are one: "..." is not "." and not "!!".
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|(?:([.,;:!?()\"-])\1*)")
# A fifth of a user's posts is held out, and each of two devices needs some of the rest, by whole albums too. Who
# moved a diary in on a single day has no order of time.
_MIN_POSTS, _MIN_ALBUMS = 10, 3


def blogs(
    users: int = 50,
    *,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    skip_undated: bool = False,
    min_words: int = 3000,
    vocabulary: int = 400,
    window: int = 3,
) -> Population:
    """Load bloggers: the next word in posts of the Blog Authorship corpus, under ``<root>/blogs``.

    Parameters
    ----------
    users
        Number of bloggers, at least 1.
    root
        Data root; None: see `gradleak_lib.data.data_root`.
    skip_undated
        See `gradleak_lib.data.corpora.read_blogs`.
    seed, min_words, vocabulary, window
        See `text_population`. With 3,000 words and more, a user has 1,280 windows or more to train on.

    Returns
    -------
    Population
        As `text_population` returns it; albums are days.

    Raises
    ------
    ValueError
        If an argument is out of range.
    MissingData, CorruptData
        If a file is not on this machine, or damaged.

    References
    ----------
    Orekondy et al. 2020 (Gradient-Leaks), "Blog"; Schler et al. 2006 (Effects of Age and Gender on Blogging).
    """
    posts = read_blogs(data_root(root) / "blogs", skip_undated=skip_undated)
    return text_population(
        posts, users, name="blogs", vocabulary=vocabulary, window=window, seed=seed, min_words=min_words
    )


def shakespeare(
    users: int = 40,
    *,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    min_words: int = 600,
    vocabulary: int = 400,
    window: int = 3,
) -> Population:
    """Load characters: the next word in speeches of eight of Shakespeare's plays.

    Not in the papers; it needs the smallest download of the three. A user is a role of one play.

    Parameters
    ----------
    users
        Number of roles, at least 1. There are 42 to draw from with 600 words or more.
    root
        Data root with ``nltk_data/corpora/shakespeare.zip`` or ``corpora/shakespeare.zip``; None: see
        `gradleak_lib.data.data_root`.
    seed, min_words, vocabulary, window
        See `text_population`.

    Returns
    -------
    Population
        As `text_population` returns it; albums are scenes, times the order in the play.

    Raises
    ------
    ValueError
        If an argument is out of range.
    MissingData, CorruptData
        If the archive is not on this machine, or damaged.

    References
    ----------
    McMahan et al. 2017, Sec. 3: roles of Shakespeare's plays as users.
    """
    posts = read_shakespeare(data_root(root))
    return text_population(
        posts, users, name="shakespeare", vocabulary=vocabulary, window=window, seed=seed, min_words=min_words
    )


def yelp(
    users: int = 100,
    *,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    min_posts: int = 100,
    min_words: int = 3000,
    vocabulary: int = 400,
    window: int = 3,
) -> Population:
    """Load reviewers: the next word in ``<root>/yelp/yelp_academic_dataset_review.json``.

    Parameters
    ----------
    users
        Number of reviewers, at least 1.
    root
        Data root; None: see `gradleak_lib.data.data_root`.
    min_posts
        Reviews that a person has written at least; others are left out of the public part, too.
    seed, min_words, vocabulary, window
        See `text_population`.

    Returns
    -------
    Population
        As `text_population` returns it; albums are days.

    Raises
    ------
    ValueError
        If an argument is out of range.
    MissingData, CorruptData
        If the file is not on this machine, or damaged.

    References
    ----------
    Orekondy et al. 2020 (Gradient-Leaks), "Yelp".
    """
    posts = read_yelp(data_root(root) / "yelp" / "yelp_academic_dataset_review.json", min_posts=min_posts)
    return text_population(
        posts, users, name="yelp", vocabulary=vocabulary, window=window, seed=seed, min_words=min_words
    )


def text_population(
    posts: Sequence[Post],
    users: int,
    *,
    name: str,
    vocabulary: int = 400,
    window: int = 3,
    seed: int = 0,
    min_words: int = 3000,
    public_users: int = 300,
) -> Population:
    """Turn posts into windows of words: given the preceding words, which one comes next?

    Words are lower-case runs of letters with apostrophes inside them. Authors with at least ``min_words`` words
    in ten posts and three albums or more are cut once for all seeds: 70% of them can be drawn as users, the rest
    are public, and so are authors with less. The vocabulary comes from the public authors alone, so that no private
    word shapes it.

    Parameters
    ----------
    posts
        A corpus, always in the same order.
    users
        Number of users, at least 1.
    name
        Name of the corpus.
    vocabulary
        Number of words to predict, at least 2: the most frequent ones of the public authors. Class ``k`` is the
        ``k``-th most frequent word.
    window
        Number of preceding words, at least 1.
    seed
        Seed of the draw of the users, 0 or more.
    min_words
        Words that a user has written at least, in all posts together.
    public_users
        At most this many public authors, to bound the memory: first those with enough text.

    Returns
    -------
    Population
        Windows int64 ``[N, window]`` with words 0 to ``vocabulary - 1``; the number ``vocabulary`` stands for any
        other word and for what lies before the start of a post, as no window crosses posts. Only windows whose
        next word is in the vocabulary are samples. ``items`` and ``sources`` are numbers of posts. A sample takes
        ``8 * (window + 6)`` bytes.

    Raises
    ------
    ValueError
        If an argument is out of range, or the public authors use too few words.
    """
    if vocabulary < 2 or window < 1 or min_words < 1 or public_users < 1:
        raise ValueError(
            "vocabulary must be 2 or more and window, min_words and public_users 1 or more, got "
            f"vocabulary={vocabulary}, window={window}, min_words={min_words}, public_users={public_users}"
        )
    rich, poor = _by_wealth(posts, min_words)
    drawn, others = draw_users(rich, users, seed=seed)
    public = dict.fromkeys(np.concatenate([others, poor])[:public_users], -1)
    known = _most_frequent((post.text for post in posts if post.author in public), vocabulary)
    private = _windows(posts, {author: number for number, author in enumerate(drawn)}, known, window, name)
    train, test = hold_out(private)
    return Population(train, test, _windows(posts, public, known, window, name))


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words (runs of letters, with apostrophes inside) and punctuation marks."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [found.group() for found in _WORD.finditer(plain)]


def _by_wealth(posts: Sequence[Post], min_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Authors with enough words, posts and albums to be split, and all others, in alphabetical order."""
    words: Counter[str] = Counter()
    filled: dict[str, list[str | int]] = {}
    for post in posts:
        length = len(words_of(post.text))
        words[post.author] += length
        filled.setdefault(post.author, []).extend([post.album] * (length > 0))
    authors = np.array(sorted(words), dtype=object)
    enough = [
        words[author] >= min_words
        and len(filled[author]) >= _MIN_POSTS
        and len(set(filled[author])) >= _MIN_ALBUMS
        for author in authors
    ]
    mask = np.array(enough, dtype=bool)
    return authors[mask], authors[~mask]


def _most_frequent(texts: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the most frequent words, equally frequent ones in alphabetical order."""
    frequency: Counter[str] = Counter()
    for text in texts:
        frequency.update(words_of(text))
    if len(frequency) < count:
        raise ValueError(
            f"vocabulary={count}: the public authors use {len(frequency)} words: take a smaller one, or more text"
        )
    return tuple(sorted(frequency, key=lambda word: (-frequency[word], word))[:count])


def _windows(
    posts: Sequence[Post], owners: dict[str, int], known: tuple[str, ...], window: int, name: str
) -> UserDataset:
    """Windows of the posts of some authors, author by author and post by post."""
    number_of = {word: number for number, word in enumerate(known)}
    rows = {author: index for index, author in enumerate(owners)}
    chosen = [number for number, post in enumerate(posts) if post.author in owners]
    chosen.sort(key=lambda number: rows[posts[number].author])
    empty = np.empty((0, window + 1), dtype=np.int64)
    parts = [empty]
    for number in chosen:
        words = [number_of.get(word, len(known)) for word in words_of(posts[number].text)]
        stream = np.array([len(known)] * window + words, dtype=np.int64)
        views = np.lib.stride_tricks.sliding_window_view(stream, window + 1) if words else empty
        parts.append(views[views[:, -1] < len(known)])
    lengths = [len(part) for part in parts[1:]]
    samples = np.concatenate(parts)
    albums = {key: index for index, key in enumerate(dict.fromkeys(posts[number].album for number in chosen))}
    items = np.repeat(np.array(chosen, dtype=np.int64), lengths)

    def spread(values: list[int] | list[float], dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=dtype), lengths))

    return UserDataset(
        inputs=torch.from_numpy(samples[:, :-1].copy()),
        targets=torch.from_numpy(samples[:, -1].copy()),
        users=spread([owners[posts[number].author] for number in chosen], np.int64),
        items=torch.from_numpy(items),
        albums=spread([albums[posts[number].album] for number in chosen], np.int64),
        times=spread([posts[number].time for number in chosen], np.float64),
        sources=torch.from_numpy(items)[:, None].clone(),
        classes=known,
        user_names=tuple(author for author, number in owners.items() if number >= 0),
        name=name,
    )
