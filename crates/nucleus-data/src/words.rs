//! Captions to tokens: words, their frequencies, the vocabulary.

use std::collections::HashMap;

use crate::format::{MAX_WORDS, PADDING, SPECIAL_WORDS, UNKNOWN};

/// The words of a caption: its longest runs of letters and digits, in lower case. Everything else separates.
///
/// An apostrophe between letters belongs to its word and is left out of it: `O'Neil's` is `oneils`.
pub fn words(caption: &str) -> impl Iterator<Item = String> {
    caption.split(|c: char| !(c.is_alphanumeric() || is_apostrophe(c))).filter_map(|run| {
        let word: String = run.chars().filter(|c| !is_apostrophe(*c)).flat_map(char::to_lowercase).collect();
        (!word.is_empty()).then_some(word)
    })
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}')
}

/// Counts words of captions.
#[derive(Clone, Debug, Default)]
pub struct WordCounts {
    counts: HashMap<String, u64>,
}

impl WordCounts {
    /// Counts every word of `caption`.
    pub fn add(&mut self, caption: &str) {
        for word in words(caption) {
            *self.counts.entry(word).or_default() += 1;
        }
    }

    /// The words that occur at least `min_count` times, the most frequent first, equally frequent ones in the order of
    /// their letters; at most `max_words` of them.
    pub fn vocabulary(self, min_count: u64, max_words: usize) -> Vocabulary {
        let mut counted: Vec<(String, u64)> =
            self.counts.into_iter().filter(|(_, count)| *count >= min_count).collect();
        counted.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        counted.truncate(max_words.min(MAX_WORDS));
        let words = SPECIAL_WORDS.into_iter().map(str::to_owned);
        Vocabulary::new(words.chain(counted.into_iter().map(|(word, _)| word)).collect())
    }
}

/// Words and their token ids.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    words: Vec<String>,
    ids: HashMap<String, i32>,
}

impl Vocabulary {
    /// The vocabulary whose word number `i` has the id `i`; the first two are [`SPECIAL_WORDS`].
    pub fn new(words: Vec<String>) -> Vocabulary {
        let ids =
            words.iter().zip(0..).skip(SPECIAL_WORDS.len()).map(|(word, id)| (word.clone(), id)).collect();
        Vocabulary { words, ids }
    }

    /// Word of every id.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Number of ids, padding and the unknown word included.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// True where there are no ids at all.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The id of a word as [`words`] gives it.
    pub fn id(&self, word: &str) -> i32 {
        self.ids.get(word).copied().unwrap_or(UNKNOWN)
    }

    /// The caption as exactly `length` tokens: words beyond are cut, missing ones are [`PADDING`].
    pub fn tokens(&self, caption: &str, length: usize) -> Vec<i32> {
        let ids = words(caption).map(|word| self.id(&word));
        ids.chain(std::iter::repeat(PADDING)).take(length).collect()
    }

    /// The words of `tokens` up to the padding, with spaces between them. An id that does not exist reads as the unknown word.
    pub fn text(&self, tokens: &[i32]) -> String {
        let word = |id: &i32| {
            let index = usize::try_from(*id).ok().filter(|index| *index < self.words.len());
            self.words.get(index.unwrap_or(UNKNOWN as usize)).map_or("", String::as_str)
        };
        let words: Vec<&str> = tokens.iter().take_while(|id| **id != PADDING).map(word).collect();
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(caption: &str) -> Vec<String> {
        words(caption).collect()
    }

    #[test]
    fn words_are_runs_of_letters_and_digits_in_lower_case() {
        assert_eq!(list("Flag: Côte d\u{2019}Ivoire"), ["flag", "côte", "divoire"]);
        assert_eq!(list("rolled-up, 1:30 ZZZ"), ["rolled", "up", "1", "30", "zzz"]);
        assert_eq!(list("keycap: *"), ["keycap"]);
        assert_eq!(list(" ,'- "), Vec::<String>::new());
    }

    #[test]
    fn vocabulary_is_ordered_by_frequency_then_letters() {
        let mut counts = WordCounts::default();
        for caption in ["red heart", "red apple", "blue heart", "red"] {
            counts.add(caption);
        }
        let all = counts.clone().vocabulary(1, 100);
        assert_eq!(all.words(), ["<padding>", "<unknown>", "red", "heart", "apple", "blue"]);
        assert_eq!(counts.clone().vocabulary(2, 100).len(), 4);
        assert_eq!(counts.vocabulary(1, 1).words()[2..], ["red"]);
    }

    #[test]
    fn tokens_are_cut_and_padded() {
        let mut counts = WordCounts::default();
        counts.add("red red heart");
        let vocabulary = counts.vocabulary(1, 10);
        assert_eq!(vocabulary.tokens("Heart, red <padding> blue", 6), [3, 2, 1, 1, 0, 0]);
        assert_eq!(vocabulary.tokens("red heart red", 2), [2, 3]);
        assert_eq!(vocabulary.text(&[3, 2, 99, -1, 0, 2]), "heart red <unknown> <unknown>");
    }
}
