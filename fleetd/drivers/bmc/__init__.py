"""BMC wires: what may be asked (capabilities), Redfish, IPMI, and the quirks of vendors as one file each."""
