//! Rules that a test can break on purpose, to show that the simulator finds it. Only with the feature `sabotage`, which no
//! binary that is shipped has; without it every answer is a constant "no".

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Nothing starts that the budget cannot hold.
    Budget,
    /// No second victim before the first one's bytes are accounted for.
    Receipt,
    /// Critical ones are never evicted.
    CriticalLast,
    /// `on-failure:n` restarts n times in a row.
    RestartCount,
    /// Restarts wait for their delay.
    Delay,
    /// What we do ourselves leaves `min_available`.
    MinAvailable,
    /// A first start waits for what it depends on.
    Dependencies,
    /// `down` stops in reverse order.
    ReverseOrder,
    /// A start that is not wanted any more is stopped as soon as it came to something.
    LateStart,
    /// Every end is told.
    EndTold,
    /// A grace that is over is followed by a kill.
    Grace,
    /// Who waits for room is looked at again when room comes back.
    Wakeup,
    /// A conversation's new process waits until nothing is left of the old one.
    OneProcess,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Budget,
        Self::Receipt,
        Self::CriticalLast,
        Self::RestartCount,
        Self::Delay,
        Self::MinAvailable,
        Self::Dependencies,
        Self::ReverseOrder,
        Self::LateStart,
        Self::EndTold,
        Self::Grace,
        Self::Wakeup,
        Self::OneProcess,
    ];
}

/// Which rule is broken, if one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sabotage {
    #[cfg(feature = "sabotage")]
    pub(super) broken: Option<Rule>,
}

impl Sabotage {
    /// Whether this rule is broken.
    #[cfg(feature = "sabotage")]
    pub(super) fn breaks(self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    /// No rule is.
    #[cfg(not(feature = "sabotage"))]
    pub(super) fn breaks(self, _: Rule) -> bool {
        false
    }
}
