//! Who may ask at the gateway's port, for which pools, and how often: the file of tokens.
//!
//! ```text
//! # TOKEN [pools=a,b] [rate=60/m]
//! vvK3dQ2mZ8pTzWqL0a7x
//! 3f9c1be7d2a64c508e11 pools=assistant,echo rate=60/m
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::secret::Secret;

/// The largest file of tokens that is read, bytes.
pub const LARGEST_FILE: usize = 256 << 10;
/// More tokens than this are another kind of file.
const MOST_TOKENS: usize = 1000;
/// Longer than any token.
const LONGEST_TOKEN: usize = 512;
/// A higher rate is none.
const MOST_TIMES: u32 = 1_000_000;

/// Tokens with what each of them may.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens(Vec<Grant>);

/// One token.
#[derive(Debug, Clone, PartialEq)]
struct Grant {
    token: Secret,
    /// Where it stands in its file, from 1.
    line: usize,
    /// For these pools alone; `None` is for all.
    pools: Option<BTreeSet<String>>,
    rate: Option<Rate>,
}

/// What is wrong with a file of tokens; the token itself is never part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct TokenError {
    /// The line, from 1; 0 is the whole file.
    pub line: usize,
    /// What, and what to do.
    pub what: String,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.what),
            line => write!(f, "line {line}: {}", self.what),
        }
    }
}

/// A token that was recognised; of the [`Tokens`] that told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known(usize);

impl Tokens {
    /// Reads a file of tokens: one a line, with `pools=` and `rate=` behind it, and comments behind `#`.
    ///
    /// # Errors
    /// The first line that is none, or that there is no token at all.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut grants: Vec<Grant> = Vec::new();
        for (number, text) in text.lines().enumerate() {
            let line = number + 1;
            let wrong = |what: String| TokenError { line, what };
            let mut words = text.split('#').next().unwrap_or_default().split_whitespace();
            let Some(token) = words.next() else { continue };
            if token.len() > LONGEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong(format!("a token is letters, digits and signs, at most {LONGEST_TOKEN} of them")));
            }
            if token.starts_with("pools=") || token.starts_with("rate=") {
                return Err(wrong("the line has no token: it comes first, then `pools=` and `rate=`".to_owned()));
            }
            let mut grant = Grant { token: Secret::new(token), line, pools: None, rate: None };
            for word in words {
                // A word that is no option may be half of a token, and is not repeated.
                let unknown =
                    || wrong("behind the token stand `pools=a,b` and `rate=60/m`, and nothing else".to_owned());
                match word.split_once('=').ok_or_else(unknown)? {
                    ("pools", names) if grant.pools.is_none() => grant.pools = Some(pools(names).map_err(wrong)?),
                    ("rate", rate) if grant.rate.is_none() => grant.rate = Some(Rate::parse(rate).map_err(wrong)?),
                    ("pools" | "rate", _) => return Err(wrong("the same option is there twice".to_owned())),
                    _ => return Err(unknown()),
                }
            }
            if let Some(other) = grants.iter().find(|other| other.token == grant.token) {
                return Err(wrong(format!("it is the token of line {} again: take one of the two away", other.line)));
            }
            if grants.len() == MOST_TOKENS {
                return Err(wrong(format!("there are more than {MOST_TOKENS} tokens")));
            }
            grants.push(grant);
        }
        if grants.is_empty() {
            let what = "there is no token in it: write one a line, for example of `openssl rand -hex 20`";
            return Err(TokenError { line: 0, what: what.to_owned() });
        }
        Ok(Self(grants))
    }

    /// Are the pools that tokens are for there?
    ///
    /// # Errors
    /// The first pool that is not.
    pub fn check(&self, is_pool: impl Fn(&str) -> bool) -> Result<(), TokenError> {
        for grant in &self.0 {
            if let Some(name) = grant.pools.iter().flatten().find(|name| !is_pool(name)) {
                let what = format!("there is no pool `{}`", name.escape_debug());
                return Err(TokenError { line: grant.line, what });
            }
        }
        Ok(())
    }

    /// The token that was shown, if it is one of these. All of them are looked at, whichever it is.
    #[must_use]
    pub fn find(&self, shown: &[u8]) -> Option<Known> {
        let mut found = None;
        for (index, grant) in self.0.iter().enumerate() {
            if grant.token.is(shown) {
                found = Some(Known(index));
            }
        }
        found
    }

    /// Is it for this pool?
    #[must_use]
    pub fn is_for(&self, known: Known, pool: &str) -> bool {
        let grant = self.0.get(known.0);
        grant.is_some_and(|grant| grant.pools.as_ref().is_none_or(|pools| pools.contains(pool)))
    }

    /// A full bucket for each token with a rate.
    #[must_use]
    pub fn buckets(&self) -> Buckets {
        Buckets(self.0.iter().map(|grant| grant.rate.map(Bucket::full)).collect())
    }
}

fn pools(names: &str) -> Result<BTreeSet<String>, String> {
    let names: BTreeSet<String> = names.split(',').map(str::to_owned).collect();
    if names.contains("") { Err("`pools=` takes names with commas between them".to_owned()) } else { Ok(names) }
}

/// Requests a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    times: u32,
    every: Duration,
}

impl Rate {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "`rate=` takes requests a second, a minute or an hour: 5/s, 60/m, 1000/h".to_owned();
        let (times, every) = text.split_once('/').ok_or_else(wrong)?;
        let is_number = times.bytes().all(|byte| byte.is_ascii_digit());
        let times: u32 = times.parse().map_err(|_| wrong())?;
        let every = match every {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        if !is_number || !(1..=MOST_TIMES).contains(&times) {
            return Err(wrong());
        }
        Ok(Self { times, every: Duration::from_secs(every) })
    }

    /// One request's share of the time, nanoseconds.
    fn share(self) -> u128 {
        self.every.as_nanos() / u128::from(self.times)
    }
}

/// How much each token has left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Buckets(Vec<Option<Bucket>>);

impl Buckets {
    /// Takes one request of a token, `now` from any beginning that stays the same.
    ///
    /// # Errors
    /// How long until there is one again.
    pub fn take(&mut self, known: Known, now: Duration) -> Result<(), Duration> {
        match self.0.get_mut(known.0) {
            Some(Some(bucket)) => bucket.take(now),
            _ => Ok(()),
        }
    }
}

/// Holds as many requests as the rate has in its time, and is filled evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    rate: Rate,
    /// When it is full again, if nothing is taken; nanoseconds.
    full_at: u128,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, full_at: 0 }
    }

    fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let now = now.as_nanos();
        let after = self.full_at.max(now) + self.rate.share();
        let room = now + self.rate.share() * u128::from(self.rate.times);
        if after > room {
            return Err(Duration::from_nanos(u64::try_from(after - room).unwrap_or(u64::MAX)));
        }
        self.full_at = after;
        Ok(())
    }
}

/// The token of an `Authorization` header's value: `Bearer TOKEN`, the word in any case.
#[must_use]
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (word, rest) = value.split_at_checked(6)?;
    let token = rest.strip_prefix(b" ")?.trim_ascii();
    (word.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str =
        "# who may ask\n\none-token-for-all   # of the team\r\n\tsecond pools=a,b rate=3/s\nthird rate=60/m\n";

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn tokens_with_what_they_may() {
        let tokens = Tokens::parse(FILE).unwrap();
        let known = |shown: &str| tokens.find(shown.as_bytes());
        let (all, second) = (known("one-token-for-all").unwrap(), known("second").unwrap());
        assert!(tokens.is_for(all, "anything") && tokens.is_for(second, "b") && !tokens.is_for(second, "c"));
        for stranger in ["", "one-token-for-al", "one-token-for-all2", "#", "pools=a,b", "Second"] {
            assert_eq!(known(stranger), None, "{stranger}");
        }
        assert_eq!(tokens.check(|pool| pool == "a" || pool == "b"), Ok(()));
        assert_eq!(tokens.check(|pool| pool == "a").unwrap_err().to_string(), "line 4: there is no pool `b`");

        let mut buckets = tokens.buckets();
        for _ in 0..3 {
            assert_eq!(buckets.take(second, at(5000)), Ok(()));
        }
        assert_eq!(buckets.take(second, at(5000)), Err(Duration::from_nanos(333_333_333)));
        assert_eq!(buckets.take(second, at(5334)), Ok(()));
        assert_eq!((0..1000).filter(|_| buckets.take(all, at(0)).is_ok()).count(), 1000);
    }

    #[test]
    fn what_is_wrong_is_told_by_line_and_never_shown() {
        for (text, told) in [
            ("", "there is no token in it"),
            ("# none\n \n", "there is no token in it"),
            ("a\nhunter2 hunter3", "line 2: behind the token stand"),
            ("hunter2 pool=hunter3", "line 1: behind the token stand"),
            ("hunter2 pools=", "line 1: `pools=` takes names"),
            ("hunter2 pools=a,,b", "line 1: `pools=` takes names"),
            ("hunter2 pools=a pools=b", "line 1: the same option is there twice"),
            ("hunter2 rate=5", "line 1: `rate=` takes requests"),
            ("hunter2 rate=0/s", "line 1: `rate=` takes requests"),
            ("hunter2 rate=+5/s", "line 1: `rate=` takes requests"),
            ("hunter2 rate=5/d", "line 1: `rate=` takes requests"),
            ("hunter2 rate=99999999/s", "line 1: `rate=` takes requests"),
            ("pools=hunter2", "line 1: the line has no token"),
            ("hunter2\n\nhunter2 rate=5/s", "line 3: it is the token of line 1 again"),
            ("hünter2", "line 1: a token is letters"),
            (&"hunter2".repeat(100), "line 1: a token is letters"),
            (&(0..1001).map(|n| format!("hunter2-{n}\n")).collect::<String>(), "line 1001: there are more than 1000"),
        ] {
            let error = Tokens::parse(text).unwrap_err();
            assert!(error.to_string().starts_with(told), "{text}: {error}");
            assert!(!format!("{error:?}").contains("unter"), "{error:?}");
        }
        assert!(!format!("{:?}", Tokens::parse(FILE).unwrap()).contains("for-all"));
    }

    #[test]
    fn a_header_of_a_bearer() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER  abc "), Some(&b"abc"[..]));
        for wrong in [&b""[..], b"Bearer", b"Bearer ", b"Basic abc", b"Bearerabc", b"abc"] {
            assert_eq!(bearer(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(text in "(?s).{0,200}", shown in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(tokens) = Tokens::parse(&text) {
                let _ = tokens.find(&shown);
            }
            let _ = bearer(&shown);
        }

        /// In no stretch of time more than the bucket holds and what the time fills it with; and who waits as told may go.
        #[test]
        fn a_rate_is_held(times in 1u32..20, steps in prop::collection::vec(0u64..2000, 1..200)) {
            let tokens = Tokens::parse(&format!("t rate={times}/m")).unwrap();
            let known = tokens.find(b"t").unwrap();
            let mut buckets = tokens.buckets();
            let mut now = 10_000;
            let mut taken = Vec::new();
            for step in steps {
                now += step;
                match buckets.take(known, at(now)) {
                    Ok(()) => taken.push(now),
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO && wait <= Duration::from_secs(60));
                        prop_assert_eq!(buckets.clone().take(known, at(now) + wait), Ok(()));
                    }
                }
            }
            for (index, from) in taken.iter().enumerate() {
                for (count, until) in taken[index..].iter().enumerate() {
                    let most = f64::from(times) * (1.0 + (until - from) as f64 / 60_000.0);
                    prop_assert!(count as f64 <= most + 1e-6);
                }
            }
        }
    }
}
