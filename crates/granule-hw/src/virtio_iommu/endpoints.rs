//! Which endpoint is in which domain, and which domain ids are taken.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// The endpoints and domains of one device.
#[derive(Default)]
pub(super) struct Endpoints {
    attached: Vec<(u32, u32)>,
    domains: Vec<u32>,
}

impl Endpoints {
    /// Takes the lowest free domain id from `first` to `last`.
    pub(super) fn take_domain(&mut self, first: u32, last: u32) -> Option<u32> {
        let mut id = first;
        // Sorted, so that one pass finds the first gap.
        for taken in self.domains.iter().skip_while(|taken| **taken < first) {
            if *taken != id {
                break;
            }
            id = id.checked_add(1)?;
        }
        if id > last || self.domains.try_reserve(1).is_err() {
            return None;
        }
        let at = self.domains.partition_point(|taken| *taken < id);
        self.domains.insert(at, id);
        Some(id)
    }

    pub(super) fn release_domain(&mut self, id: u32) {
        self.domains.retain(|taken| *taken != id);
    }

    /// Notes that an endpoint is in a domain, unless it is in another.
    pub(super) fn claim(&mut self, endpoint: u32, domain: u32) -> Result<bool, ()> {
        match self.domain_of(endpoint) {
            Some(other) if other != domain => Err(()),
            Some(_) => Ok(true),
            None => {
                let room = self.attached.try_reserve(1).is_ok();
                if room {
                    self.attached.push((endpoint, domain));
                }
                Ok(room)
            }
        }
    }

    pub(super) fn release(&mut self, endpoint: u32) {
        self.attached.retain(|(held, _)| *held != endpoint);
    }

    /// The domain that an endpoint is in.
    pub(super) fn domain_of(&self, endpoint: u32) -> Option<u32> {
        self.attached.iter().find(|(held, _)| *held == endpoint).map(|(_, domain)| *domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_taken() {
        let mut endpoints = Endpoints::default();
        assert_eq!(endpoints.take_domain(5, 7), Some(5));
        assert_eq!(endpoints.take_domain(5, 7), Some(6));
        assert_eq!(endpoints.take_domain(5, 7), Some(7));
        assert_eq!(endpoints.take_domain(5, 7), None);
        endpoints.release_domain(6);
        assert_eq!(endpoints.take_domain(5, 7), Some(6));
        assert_eq!(endpoints.take_domain(u32::MAX, u32::MAX), Some(u32::MAX));
        assert_eq!(endpoints.take_domain(u32::MAX, u32::MAX), None);
    }

    #[test]
    fn an_endpoint_is_in_one_domain() {
        let mut endpoints = Endpoints::default();
        assert_eq!(endpoints.claim(3, 1), Ok(true));
        assert_eq!(endpoints.claim(3, 1), Ok(true));
        assert_eq!(endpoints.claim(3, 2), Err(()));
        endpoints.release(3);
        assert_eq!(endpoints.claim(3, 2), Ok(true));
        assert_eq!(endpoints.domain_of(3), Some(2));
    }
}
