//! Answers on HTTP/2 that their reader does not take. Its window is closed and its connection is well, so it shows
//! only in that a piece was taken from the answer's source and none is asked for any more.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

thread_local! {
    /// What the answer that is being sent now on this thread did last.
    static LAST: Cell<Option<Step>> = const { Cell::new(None) };
}

/// What the body of an answer does when it is asked for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It gives a piece, or its end.
    Gives,
    /// It has nothing yet.
    Waits,
}

impl Step {
    /// Tells whoever watches the answer.
    pub fn note(self) {
        LAST.set(Some(self));
    }
}

/// Runs the requests of HTTP/2 connections as tasks, and ends those whose answers nobody takes.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    unread: Option<Duration>,
}

impl Streams {
    /// Ends a request when no more of its answer is taken for `unread`.
    pub fn new(unread: Option<Duration>) -> Self {
        Self { unread }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        match self.unread {
            Some(unread) => drop(tokio::spawn(until_unread(stream, unread))),
            None => drop(tokio::spawn(stream)),
        }
    }
}

/// Runs `stream` to its end, or until its answer is not taken for `unread`.
async fn until_unread(stream: impl Future<Output = ()>, unread: Duration) {
    let mut stream = pin!(stream);
    let mut given = false;
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|context| {
        LAST.set(None);
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if let Some(step) = LAST.take() {
            given = step == Step::Gives;
            match (&mut timer, given) {
                (Some(timer), true) => timer.as_mut().reset(Instant::now() + unread),
                (timer, true) => *timer = Some(Box::pin(tokio::time::sleep(unread))),
                (timer, false) => *timer = None,
            }
        }
        let Some(timer) = timer.as_mut().filter(|_| given) else { return Poll::Pending };
        ready!(timer.as_mut().poll(context));
        Poll::Ready(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_answer_that_was_given_and_is_not_taken_ends() {
        let unread = Duration::from_millis(100);
        let run = async |steps: &'static [Step]| {
            let mut steps = steps.iter();
            let stream = poll_fn(move |_| {
                if let Some(step) = steps.next() {
                    step.note();
                }
                Poll::Pending
            });
            tokio::time::timeout(5 * unread, until_unread(stream, unread)).await.is_ok()
        };
        assert!(!run(&[]).await, "not begun");
        assert!(!run(&[Step::Waits]).await, "waits for its source");
        assert!(run(&[Step::Gives]).await);
    }
}
