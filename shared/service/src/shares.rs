//! Bounds of a limited resource: for each holder, and for all holders together.
//!
//! * I1. A share returns when it is dropped. A holder without a share uses no memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// The bound that a share would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// The bound of one holder.
    PerHolder,
    /// The bound of all holders together.
    Total,
}

/// A resource of which each holder has shares.
#[derive(Clone)]
pub struct Shares<K>(Arc<Inner<K>>);

struct Inner<K> {
    per_holder: u64,
    total: u64,
    is_fair: bool,
    used: Mutex<Used<K>>,
}

struct Used<K> {
    by_holder: HashMap<K, u64>,
    total: u64,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    pub fn new(per_holder: u64, total: u64) -> Self {
        Self::with_fairness(per_holder, total, false)
    }

    /// As [`Self::new`], and what a holder has never exceeds what is free after it has taken it. So a
    /// holder without a share finds some of the resource, whatever the others do.
    pub fn fair(per_holder: u64, total: u64) -> Self {
        Self::with_fairness(per_holder, total, true)
    }

    fn with_fairness(per_holder: u64, total: u64, is_fair: bool) -> Self {
        Self(Arc::new(Inner {
            per_holder,
            total,
            is_fair,
            used: Mutex::new(Used {
                by_holder: HashMap::new(),
                total: 0,
            }),
        }))
    }

    /// # Errors
    /// When a bound would be exceeded.
    pub fn take(&self, holder: &K, amount: u64) -> Result<Share<K>, Exceeded> {
        self.take_within(holder, amount, self.0.per_holder)
    }

    /// As [`Self::take`], with `per_holder` as the bound of this holder.
    ///
    /// # Errors
    /// When a bound would be exceeded.
    pub fn take_within(
        &self,
        holder: &K,
        amount: u64,
        per_holder: u64,
    ) -> Result<Share<K>, Exceeded> {
        let mut share = Share {
            shares: self.clone(),
            holder: holder.clone(),
            per_holder,
            amount: 0,
        };
        share.grow(amount)?;
        Ok(share)
    }
}

/// The part of a resource that one holder has until this is dropped.
pub struct Share<K: Clone + Eq + Hash> {
    shares: Shares<K>,
    holder: K,
    /// The bound of the holder.
    per_holder: u64,
    amount: u64,
}

impl<K: Clone + Eq + Hash> Share<K> {
    /// # Errors
    /// When a bound would be exceeded. The share is unchanged.
    pub fn grow(&mut self, amount: u64) -> Result<(), Exceeded> {
        if amount == 0 {
            return Ok(());
        }
        let inner = &self.shares.0;
        let mut used = inner.used.lock();
        let held = used.by_holder.get(&self.holder).copied().unwrap_or(0);
        if amount > self.per_holder.saturating_sub(held) {
            return Err(Exceeded::PerHolder);
        }
        let free = inner.total.saturating_sub(used.total);
        let left = free.checked_sub(amount).ok_or(Exceeded::Total)?;
        if inner.is_fair && held + amount > left {
            return Err(Exceeded::Total);
        }
        used.by_holder.insert(self.holder.clone(), held + amount);
        used.total += amount;
        self.amount += amount;
        Ok(())
    }

    /// Returns a part of the share.
    pub fn shrink(&mut self, amount: u64) {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        let mut used = self.shares.0.used.lock();
        used.total -= amount;
        if let Some(held) = used.by_holder.get_mut(&self.holder) {
            *held -= amount;
            if *held == 0 {
                used.by_holder.remove(&self.holder);
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_of_a_fair_share_leaves_as_much_as_it_has() {
        let shares = Shares::fair(6, 10);
        let _first = shares.take(&'a', 5).unwrap();
        assert_eq!(shares.take(&'a', 1).err(), Some(Exceeded::Total));
        assert!(shares.take(&'a', 0).is_ok());
        let mut second = shares.take(&'b', 2).unwrap();
        assert_eq!(second.grow(1), Err(Exceeded::Total));
        assert!(shares.take(&'c', 1).is_ok());
    }

    #[test]
    fn bound_of_one_holder_replaces_that_of_all() {
        let shares = Shares::new(2, 10);
        let mut more = shares.take_within(&'a', 3, 3).unwrap();
        assert_eq!(more.grow(1), Err(Exceeded::PerHolder));
        assert_eq!(
            shares.take_within(&'b', 2, 1).err(),
            Some(Exceeded::PerHolder)
        );
        assert!(shares.take(&'b', 2).is_ok());
    }

    #[test]
    fn share_beyond_a_bound_is_refused_until_another_returns() {
        let shares = Shares::new(3, 4);
        let mut first = shares.take(&'a', 2).unwrap();
        assert_eq!(first.grow(2), Err(Exceeded::PerHolder));
        assert_eq!(first.grow(1), Ok(()));
        assert_eq!(shares.take(&'a', 1).err(), Some(Exceeded::PerHolder));
        let second = shares.take(&'b', 1).unwrap();
        assert_eq!(shares.take(&'b', 1).err(), Some(Exceeded::Total));
        first.shrink(1);
        drop(second);
        let third = shares.take(&'b', 2).unwrap();
        assert_eq!(shares.0.used.lock().total, 4);
        drop((first, third));
        let used = shares.0.used.lock();
        assert_eq!((used.total, used.by_holder.len()), (0, 0));
    }
}
