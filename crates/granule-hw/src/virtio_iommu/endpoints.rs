//! Which endpoint is in which domain, and which domain ids are taken.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use crate::ids::Ids;

/// The endpoints and domains of one device.
#[derive(Default)]
pub(super) struct Endpoints {
    attached: Vec<(u32, u32)>,
    domains: Ids,
}

impl Endpoints {
    pub(super) fn take_domain(&mut self, first: u32, last: u32) -> Option<u32> {
        self.domains.take(first, last)
    }

    pub(super) fn release_domain(&mut self, id: u32) {
        self.domains.release(id);
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
