//! What can go wrong, as far as the exit code depends on it.

/// An error in one sentence: it names the input, what is wrong and what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Wrong from the text alone, on any machine: exit code 2.
    #[error("{0}")]
    Text(String),
    /// Depends on this machine: exit code 1.
    #[error("{0}")]
    Machine(String),
}

impl Error {
    /// An error of the text.
    pub fn text(message: impl Into<String>) -> Self {
        Self::Text(message.into())
    }

    /// An error that depends on the machine.
    pub fn machine(message: impl Into<String>) -> Self {
        Self::Machine(message.into())
    }

    /// The process exit code that stands for the error.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Text(_) => 2,
            Self::Machine(_) => 1,
        }
    }
}
