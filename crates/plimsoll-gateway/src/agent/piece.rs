//! What comes of a turn.

/// A part of an agent's answer. A turn's pieces end with exactly one that [`Piece::is_last`].
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// More text, never empty.
    Delta(String),
    /// It said something that is no text: it thinks, or uses a tool.
    Alive,
    /// The turn is answered.
    Final {
        /// The answer by itself, where the agent tells it; else the deltas are the answer. Deltas may have had more: what
        /// was said between the uses of tools. Whoever has passed deltas on has said it already.
        text: Option<String>,
        /// What it cost, where the agent tells.
        usage: Option<Usage>,
        /// How much of the model's context is used, per cent, where the agent tells.
        context_percent: Option<f64>,
        /// The agent's own name for the conversation, with which another process can take it up again.
        agent_session: Option<String>,
    },
    /// The agent refused or failed in good order and can take another turn: why, in its words.
    Failed(String),
    /// The agent was interrupted, and says so.
    Interrupted,
    /// The session is of no more use: why.
    Broken(String),
}

impl Piece {
    /// Whether the turn is over with it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Delta(_) | Self::Alive)
    }
}

/// Tokens of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Read by the model, those from its cache among them.
    pub prompt_tokens: u64,
    /// Written by the model.
    pub completion_tokens: u64,
}
