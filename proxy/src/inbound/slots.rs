//! Who gets the next slot at the agent. Pure: it decides, [`super::backend::agent_slots`] waits and sends.
//!
//! A caller may take a slot as long as it has fewer than `SHARE` times as many as are free. A single caller thus gets
//! nearly all of them, many callers get equal parts, and some are left for a caller that has none (the dynamic
//! thresholds of A. Choudhury and E. Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). Those who wait are served
//! in turn by caller, each caller's in order.

use std::collections::{HashMap, VecDeque};

/// How many times the free ones one caller may have.
const SHARE: usize = 7;

/// The slots of one kind of work, and who waits for them. `W` is what a waiting request left behind.
#[derive(Debug)]
pub struct Slots<W> {
    free: usize,
    queue_free: usize,
    callers: HashMap<u64, Caller<W>>,
    /// Callers of which requests wait.
    turns: VecDeque<u64>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Caller<W> {
    taken: usize,
    waiting: VecDeque<(u64, W)>,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    /// It has a slot.
    Taken,
    /// It waits, by this number.
    Waits(u64),
    /// It can neither have one nor wait.
    Refused,
}

impl<W> Slots<W> {
    /// As many slots, and as many that may wait.
    pub fn new(slots: usize, queue: usize) -> Self {
        Self {
            free: slots,
            queue_free: queue,
            callers: HashMap::new(),
            turns: VecDeque::new(),
            next_ticket: 0,
        }
    }

    /// One more request of `caller`; `waiter` is called if it has to wait.
    pub fn enter(&mut self, caller: u64, waiter: impl FnOnce() -> W) -> Entered {
        let mine =
            self.callers.entry(caller).or_insert_with(|| Caller { taken: 0, waiting: VecDeque::new() });
        if mine.waiting.is_empty() && mine.taken < SHARE * self.free {
            mine.taken += 1;
            self.free -= 1;
            return Entered::Taken;
        }
        if mine.waiting.len() >= SHARE * self.queue_free {
            self.forget(caller);
            return Entered::Refused;
        }
        if mine.waiting.is_empty() {
            self.turns.push_back(caller);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue_free -= 1;
        mine.waiting.push_back((ticket, waiter()));
        Entered::Waits(ticket)
    }

    /// A slot without waiting, for work that is under way already.
    pub fn enter_now(&mut self, caller: u64) -> bool {
        let mine =
            self.callers.entry(caller).or_insert_with(|| Caller { taken: 0, waiting: VecDeque::new() });
        let enters = mine.taken < SHARE * self.free;
        if enters {
            mine.taken += 1;
            self.free -= 1;
        }
        self.forget(caller);
        enters
    }

    /// A slot of `caller` is free again. [`Slots::grant`] says who gets it.
    pub fn leave(&mut self, caller: u64) {
        if let Some(mine) = self.callers.get_mut(&caller) {
            mine.taken -= 1;
            self.free += 1;
        }
        self.forget(caller);
    }

    /// A request that waited gives up. `false`: it has a slot by now.
    pub fn give_up(&mut self, caller: u64, ticket: u64) -> bool {
        let Some(mine) = self.callers.get_mut(&caller) else { return false };
        let Some(at) = mine.waiting.iter().position(|(number, _)| *number == ticket) else { return false };
        mine.waiting.remove(at);
        self.queue_free += 1;
        if mine.waiting.is_empty() {
            self.turns.retain(|turn| *turn != caller);
        }
        self.forget(caller);
        true
    }

    /// The next of those who wait that can have a slot, which it has then.
    pub fn grant(&mut self) -> Option<W> {
        for _ in 0..self.turns.len() {
            let caller = self.turns.pop_front()?;
            let Some(mine) = self.callers.get_mut(&caller) else { continue };
            if mine.taken >= SHARE * self.free {
                self.turns.push_back(caller);
                continue;
            }
            let Some((_, waiter)) = mine.waiting.pop_front() else { continue };
            mine.taken += 1;
            self.free -= 1;
            self.queue_free += 1;
            if !mine.waiting.is_empty() {
                self.turns.push_back(caller);
            }
            return Some(waiter);
        }
        None
    }

    fn forget(&mut self, caller: u64) {
        if self.callers.get(&caller).is_some_and(|mine| mine.taken == 0 && mine.waiting.is_empty()) {
            self.callers.remove(&caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(slots: &mut Slots<u32>, caller: u64, number: u32) -> Entered {
        slots.enter(caller, || number)
    }

    #[test]
    fn a_few_slots_are_all_for_who_comes_first() {
        for most in 1..=SHARE {
            let mut slots = Slots::new(most, 0);
            for _ in 0..most {
                assert_eq!(enter(&mut slots, 1, 0), Entered::Taken, "of {most}");
            }
            assert_eq!(enter(&mut slots, 1, 0), Entered::Refused);
        }
    }

    #[test]
    fn of_many_slots_some_are_left_for_a_newcomer() {
        let mut slots = Slots::new(256, 256);
        let taken = |slots: &mut Slots<u32>, caller| {
            (0..1_000).filter(|_| enter(slots, caller, 0) == Entered::Taken).count()
        };
        assert_eq!(taken(&mut slots, 1), 224);
        let second = taken(&mut slots, 2);
        assert!((16..=32).contains(&second), "{second}");
        // They have as many waiting as they may, and a newcomer need not even wait.
        assert_eq!(enter(&mut slots, 1, 0), Entered::Refused);
        assert_eq!(enter(&mut slots, 3, 0), Entered::Taken);
    }

    #[test]
    fn those_who_wait_are_served_in_turn_by_caller() {
        let mut slots = Slots::new(1, 100);
        assert_eq!(enter(&mut slots, 1, 0), Entered::Taken);
        for (caller, number) in [(1, 11), (1, 12), (1, 13), (2, 21), (2, 22), (3, 31)] {
            assert!(matches!(enter(&mut slots, caller, number), Entered::Waits(_)));
        }
        let mut holder = 1;
        for expected in [11, 21, 31, 12, 22, 13] {
            assert_eq!(slots.grant(), None);
            slots.leave(holder);
            assert_eq!(slots.grant(), Some(expected));
            holder = u64::from(expected / 10);
        }
        slots.leave(holder);
        assert_eq!((slots.free, slots.queue_free), (1, 100));
        assert!(slots.callers.is_empty() && slots.turns.is_empty());
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let mut slots = Slots::new(1, 2);
        assert_eq!(enter(&mut slots, 1, 0), Entered::Taken);
        let Entered::Waits(ticket) = enter(&mut slots, 2, 5) else { panic!("it waits") };
        assert!(slots.give_up(2, ticket));
        slots.leave(1);
        assert_eq!(slots.grant(), None);
        // Too late: it has the slot.
        assert_eq!(enter(&mut slots, 1, 0), Entered::Taken);
        let Entered::Waits(ticket) = enter(&mut slots, 2, 5) else { panic!("it waits") };
        slots.leave(1);
        assert_eq!(slots.grant(), Some(5));
        assert!(!slots.give_up(2, ticket));
        slots.leave(2);
        assert!(slots.callers.is_empty() && slots.turns.is_empty());
        assert_eq!((slots.free, slots.queue_free), (1, 2));
    }
}
