//! The pieces of a turn on their way from an agent's reader to whoever asked, on one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::piece::Piece;

/// Pieces on their way at most; with [`PART`](super::PART), half a megabyte.
const MOST: usize = 16;

#[derive(Debug, Default)]
struct Way {
    pieces: VecDeque<Piece>,
    /// Whoever waits for a piece.
    taker: Option<Waker>,
    /// Whoever waits for room.
    giver: Option<Waker>,
    has_taker: bool,
    has_giver: bool,
}

/// Where pieces are given.
#[derive(Debug)]
pub(super) struct Giver(Rc<RefCell<Way>>);

/// Where they are taken.
#[derive(Debug)]
pub(super) struct Taker(Rc<RefCell<Way>>);

/// A piece was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotGiven {
    /// There is no room for it now.
    Full,
    /// Nobody takes pieces any more.
    Gone,
}

pub(super) fn way() -> (Giver, Taker) {
    let way = Rc::new(RefCell::new(Way { has_taker: true, has_giver: true, ..Way::default() }));
    (Giver(way.clone()), Taker(way))
}

impl Giver {
    pub(super) fn try_give(&self, piece: Piece) -> Result<(), NotGiven> {
        let mut way = self.0.borrow_mut();
        if !way.has_taker {
            return Err(NotGiven::Gone);
        }
        if way.pieces.len() >= MOST {
            return Err(NotGiven::Full);
        }
        way.pieces.push_back(piece);
        if let Some(taker) = way.taker.take() {
            taker.wake();
        }
        Ok(())
    }

    /// Waits until there is room. Whether somebody takes it.
    pub(super) async fn give(&self, piece: Piece) -> bool {
        let room = poll_fn(|context| {
            let mut way = self.0.borrow_mut();
            if way.has_taker && way.pieces.len() >= MOST {
                way.giver = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        });
        room.await;
        self.try_give(piece).is_ok()
    }
}

impl Taker {
    /// The next one; none when nobody gives any more.
    pub(super) fn poll_take(&mut self, context: &Context<'_>) -> Poll<Option<Piece>> {
        let mut way = self.0.borrow_mut();
        match way.pieces.pop_front() {
            Some(piece) => {
                if let Some(giver) = way.giver.take() {
                    giver.wake();
                }
                Poll::Ready(Some(piece))
            }
            None if way.has_giver => {
                way.taker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        let mut way = self.0.borrow_mut();
        way.has_giver = false;
        if let Some(taker) = way.taker.take() {
            taker.wake();
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut way = self.0.borrow_mut();
        way.has_taker = false;
        way.pieces = VecDeque::new();
        if let Some(giver) = way.giver.take() {
            giver.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(taker: &mut Taker) -> Option<Piece> {
        poll_fn(|context| taker.poll_take(context)).await
    }

    #[tokio::test]
    async fn pieces_come_in_their_order_and_whoever_gives_waits_for_room() {
        let (giver, mut taker) = way();
        let piece = |number: usize| Piece::Delta(number.to_string());
        for number in 0..MOST {
            assert_eq!(giver.try_give(piece(number)), Ok(()));
        }
        assert_eq!(giver.try_give(Piece::Alive), Err(NotGiven::Full));
        let give = async {
            for number in MOST..3 * MOST {
                assert!(giver.give(piece(number)).await);
            }
            drop(giver);
        };
        let take = async {
            for number in 0..3 * MOST {
                assert_eq!(take(&mut taker).await, Some(piece(number)));
            }
            assert_eq!(take(&mut taker).await, None);
        };
        tokio::join!(take, give);
    }

    #[tokio::test]
    async fn whoever_gives_learns_that_nobody_takes() {
        let (giver, taker) = way();
        while giver.try_give(Piece::Alive).is_ok() {}
        let (heard, ()) = tokio::join!(giver.give(Piece::Alive), async { drop(taker) });
        assert!(!heard);
        assert_eq!(giver.try_give(Piece::Alive), Err(NotGiven::Gone));
    }
}
