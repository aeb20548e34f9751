//! Reading and writing the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd as _,
};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapError, PerCpuArray, lpm_trie};
use portfwd_common::{
    ABI, Addr, Bank, ClaimKey, Forwarder, FromKey, RuleCounters, RuleEntry, TargetEntry, Verdict,
    names,
};

use super::{Dataplane, machine, ports};
use crate::{Error, plan::Plan};

impl Dataplane {
    /// Fills the bank that is not in use with the plan's rules and switches to
    /// it with one store.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when a map is full or refuses.
    pub fn install(&mut self, plan: &Plan) -> Result<(), Error> {
        let forwarder: Array<_, Forwarder> = self.map(names::FORWARDER)?;
        let bank = 1 - (forwarder.get(&0, 0).map_err(failed(names::FORWARDER))?.bank & 1);
        self.write_rules(plan)?;
        self.write_claims(plan, bank)?;
        match self.raw(names::PORTS)? {
            Map::Array(map) => ports::write(map.fd().as_fd(), bank, &plan.ports)?,
            _ => return Err(Error::machine("the port table is no array")),
        }
        let mut forwarder: Array<_, Forwarder> = self.map_mut(names::FORWARDER)?;
        forwarder
            .set(0, Forwarder { abi: ABI, bank }, 0)
            .map_err(failed(names::FORWARDER))
    }

    fn write_rules(&mut self, plan: &Plan) -> Result<(), Error> {
        let mut rules: Array<_, RuleEntry> = self.map_mut(names::RULES)?;
        for (slot, rule) in (0..).zip(&plan.rules) {
            rules.set(slot, rule, 0).map_err(failed(names::RULES))?;
        }
        let mut targets: Array<_, TargetEntry> = self.map_mut(names::TARGETS)?;
        for (index, target) in (0..).zip(&plan.targets) {
            targets
                .set(index, target, 0)
                .map_err(failed(names::TARGETS))?;
        }
        let mut from: LpmTrie<_, FromKey, u32> = self.map_mut(names::FROM)?;
        for (bits, key) in &plan.from {
            from.insert(&lpm_trie::Key::new(*bits, *key), 1, 0)
                .map_err(failed(names::FROM))?;
        }
        Ok(())
    }

    fn write_claims(&mut self, plan: &Plan, bank: Bank) -> Result<(), Error> {
        let mut claims: HashMap<_, ClaimKey, u32> = self.map_mut(names::CLAIMS)?;
        for (key, slot) in &plan.claims {
            let key = ClaimKey {
                bank: bank as u8,
                ..*key
            };
            claims.insert(key, slot, 0).map_err(failed(names::CLAIMS))?;
        }
        Ok(())
    }

    /// Makes LOCALS hold exactly these addresses of this host.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map is full.
    pub fn set_locals(&mut self, addresses: &[(IpAddr, u32)]) -> Result<(), Error> {
        let wanted: BTreeMap<Addr, u32> = addresses
            .iter()
            .map(|(addr, ifindex)| (Addr::from(*addr), *ifindex))
            .collect();
        let mut locals: HashMap<_, Addr, u32> = self.map_mut(names::LOCALS)?;
        let present: BTreeSet<Addr> = locals
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed(names::LOCALS))?;
        for gone in present.iter().filter(|addr| !wanted.contains_key(addr)) {
            locals.remove(gone).map_err(failed(names::LOCALS))?;
        }
        for (addr, ifindex) in &wanted {
            locals
                .insert(addr, ifindex, 0)
                .map_err(failed(names::LOCALS))?;
        }
        Ok(())
    }

    /// From now on nothing but flows of rules crosses a device to or from
    /// 127.0.0.0/8.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map is full.
    pub fn guard(&mut self, ifindex: u32) -> Result<(), Error> {
        let mut guarded: HashMap<_, u32, u32> = self.map_mut(names::GUARDED)?;
        guarded
            .insert(ifindex, 1, 0)
            .map_err(failed(names::GUARDED))
    }

    /// Counters of the rules in the first `rules` slots, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map cannot be read.
    pub fn rule_counters(&self, rules: u32) -> Result<Vec<RuleCounters>, Error> {
        let map: PerCpuArray<_, RuleCounters> = self.map(names::RULE_COUNTERS)?;
        (0..rules)
            .map(|slot| {
                let cpus = map.get(&slot, 0).map_err(failed(names::RULE_COUNTERS))?;
                Ok(cpus
                    .iter()
                    .fold(RuleCounters::default(), |sum, cpu| sum + *cpu))
            })
            .collect()
    }

    /// Packets by verdict, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map cannot be read.
    pub fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, Error> {
        let map: PerCpuArray<_, u64> = self.map(names::VERDICTS)?;
        Verdict::ALL
            .iter()
            .map(|verdict| {
                let cpus = map
                    .get(&(*verdict as u32), 0)
                    .map_err(failed(names::VERDICTS))?;
                Ok((*verdict, cpus.iter().sum()))
            })
            .collect()
    }

    fn raw(&self, name: &str) -> Result<&Map, Error> {
        self.ebpf.map(name).ok_or_else(|| missing(name))
    }

    fn map<'a, M>(&'a self, name: &str) -> Result<M, Error>
    where
        M: TryFrom<&'a Map, Error = MapError>,
    {
        M::try_from(self.raw(name)?).map_err(failed(name))
    }

    fn map_mut<'a, M>(&'a mut self, name: &str) -> Result<M, Error>
    where
        M: TryFrom<&'a mut Map, Error = MapError>,
    {
        let map = self.ebpf.map_mut(name).ok_or_else(|| missing(name))?;
        M::try_from(map).map_err(failed(name))
    }
}

fn missing(name: &str) -> Error {
    Error::machine(format!("the BPF object holds no map {name}"))
}

/// An error of one map.
fn failed(name: &str) -> impl Fn(MapError) -> Error + '_ {
    move |error| machine(format!("map {name}"), error)
}
