//! A secret: text that no log, error or `Debug` shows, and that is wiped when it is dropped.
//!
//! Invariant: it leaves only through [`Secret::expose`], whose caller hands it to where it is meant for. Made by `typed.rs`.

use zeroize::Zeroizing;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text, without the white space around it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
